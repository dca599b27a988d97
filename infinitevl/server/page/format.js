// Times, sizes and rates as people read them.

/** 75.4 -> "1:15"; 3675 -> "1:01:15". */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds || 0));
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/** 991232 -> "991 kB". */
export function bytes(count) {
  const units = ["B", "kB", "MB", "GB"];
  let value = count || 0;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 9.995 && unit ? value.toFixed(2) : Math.round(value)} ${units[unit]}`;
}

export const count = (number) => Math.round(number || 0).toLocaleString("en-US");

/** 0.2 -> "1 frame in 5 s"; 2 -> "2 frames/s". */
export function pace(rate) {
  if (rate < 1) return `1 frame in ${Math.round(1 / rate)} s`;
  return rate === 1 ? "1 frame/s" : `${rate} frames/s`;
}
