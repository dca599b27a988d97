// Asks the person for the key of the server.

import { byId } from "./dom.js";

/** Resolves to a key that the server takes, or to null if the person gives none. */
export function askForKey(api) {
  const [dialog, form, field, error] = ["key-dialog", "key-form", "key", "key-error"].map(byId);
  error.textContent = field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  field.focus();
  byId("key-cancel").onclick = () => dialog.close();
  return new Promise((resolve) => {
    let taken = null;
    form.onsubmit = async (event) => {
      event.preventDefault();
      const key = field.value.trim();
      try {
        if (await api.tryKey(key)) {
          taken = key;
          dialog.close();
        } else {
          error.textContent = "The server does not know this key. Look at how it was started, and enter it again.";
          field.select();
        }
      } catch (failure) {
        error.textContent = failure.message;
      }
    };
    dialog.addEventListener("close", () => resolve(taken), { once: true });
  });
}
