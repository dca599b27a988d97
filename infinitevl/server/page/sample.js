// Draws the sample: signs, flags and digits in turn. Each stays for three seconds.

const SECONDS = 3;
const CARDS = [
  sign("HELLO", "#2f55d4", "#e8ff7a"), flag(["#009246", "#ffffff", "#ce2b37"], "columns"), digit("7", "#f2f0e9", "#20242c"),
  sign("K4M", "#c62828", "#fff6e0"), flag(["#009e60", "#fcd116", "#3a75c4"], "rows"), digit("3", "#17352c", "#d7f5e5"),
  sign("BUS", "#1f8a4c", "#ffffff"), flag(["#14b53a", "#fcd116", "#ce1126"], "columns"), digit("5", "#e9e3f5", "#4a2a82"),
];

export function drawSample(canvas, seconds) {
  const { ground, draw } = CARDS[Math.floor(seconds / SECONDS) % CARDS.length];
  const context = canvas.getContext("2d");
  fill(context, ground, 0, 0, canvas.width, canvas.height);
  draw(context, canvas.width);
  canvas.style.background = ground; // beside the square picture
}

function sign(text, ground, ink) {
  return { ground, draw: (context, size) => write(context, text, ink, size, size * 0.22) };
}

function digit(text, ground, ink) {
  return { ground, draw: (context, size) => write(context, text, ink, size, size * 0.42) };
}

function flag(colours, direction) {
  const draw = (context, size) => {
    const [left, top, width, height] = [size * 0.1, size * 0.23, size * 0.8, size * 0.54];
    colours.forEach((colour, index) => {
      const part = index / colours.length;
      if (direction === "rows") fill(context, colour, left, top + part * height, width, height / colours.length);
      else fill(context, colour, left + part * width, top, width / colours.length, height);
    });
  };
  return { ground: "#e9edf0", draw };
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
