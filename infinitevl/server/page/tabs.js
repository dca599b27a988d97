// Tabs as screen readers and keyboards know them: one is in the tab order, arrows move between them.

import { byId } from "./dom.js";

/** Each tab names its panel in aria-controls; chosen(panel id) is called after a change. */
export class Tabs {
  constructor(list, chosen = () => {}) {
    this.tabs = [...list.querySelectorAll("[role=tab]")];
    this.chosen = chosen;
    this.tabs.forEach((tab, index) => {
      tab.addEventListener("click", () => this.choose(tab));
      tab.addEventListener("keydown", (event) => this.#move(event, index));
    });
  }

  get shown() {
    return this.tabs.find((tab) => tab.ariaSelected === "true").getAttribute("aria-controls");
  }

  choose(chosen) {
    for (const tab of this.tabs) {
      tab.ariaSelected = String(tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
    this.chosen(this.shown);
  }

  #move(event, index) {
    const last = this.tabs.length - 1;
    const to = { ArrowLeft: index ? index - 1 : last, ArrowRight: index < last ? index + 1 : 0, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.tabs[to].focus();
    this.choose(this.tabs[to]);
  }
}
