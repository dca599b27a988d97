// Sets the theme before the first paint: the chosen one, or else the system's.
(() => {
  const NAME = "infinitevl-theme";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");

  function follow() {
    root.dataset.theme = localStorage.getItem(NAME) ?? (system.matches ? "dark" : "light");
    const other = root.dataset.theme === "dark" ? "light" : "dark";
    document.getElementById("theme")?.setAttribute("aria-label", `Use ${other} colours`);
    return other;
  }

  follow();
  system.addEventListener("change", follow);
  addEventListener("DOMContentLoaded", () => {
    follow();
    document.getElementById("theme").addEventListener("click", () => {
      localStorage.setItem(NAME, follow());
      follow();
    });
  });
})();
