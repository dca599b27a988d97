// Draws the sample: a sign, then flags and digits, then the next sign. Each stays for three seconds.

const SECONDS = 3;
const CARDS = [
  sign("HELLO", "#2f55d4", "#e8ff7a"), flag(["#d22f3c", "#ffffff"]), digit("7", "#f2f0e9", "#20242c"),
  sign("K4M", "#c62828", "#fff6e0"), flag(["#0b2f8a", "#ffffff", "#d22f3c"], "columns"), digit("3", "#17352c", "#d7f5e5"),
  sign("OPEN", "#1f8a4c", "#ffffff"), flag(["#111111", "#cc1f2d", "#f5c518"]), digit("5", "#e9e3f5", "#4a2a82"),
];

export function drawSample(canvas, seconds) {
  const draw = CARDS[Math.floor(seconds / SECONDS) % CARDS.length];
  draw(canvas.getContext("2d"), canvas.width);
}

function sign(text, ground, ink) {
  return (context, size) => {
    fill(context, ground, 0, 0, size, size);
    write(context, text, ink, size, size * 0.2);
  };
}

function digit(text, ground, ink) {
  return (context, size) => {
    fill(context, ground, 0, 0, size, size);
    write(context, text, ink, size, size * 0.4);
  };
}

function flag(colours, direction = "rows") {
  return (context, size) => {
    fill(context, "#e9edf0", 0, 0, size, size);
    const [left, top, width, height] = [size * 0.22, size * 0.31, size * 0.56, size * 0.38];
    colours.forEach((colour, index) => {
      const part = index / colours.length;
      if (direction === "rows") fill(context, colour, left, top + part * height, width, height / colours.length);
      else fill(context, colour, left + part * width, top, width / colours.length, height);
    });
  };
}

function fill(context, colour, ...box) {
  context.fillStyle = colour;
  context.fillRect(...box);
}

function write(context, text, colour, size, height) {
  context.fillStyle = colour;
  context.font = `700 ${height}px system-ui, "Liberation Sans", Arial, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(text, size / 2, size / 2);
}
