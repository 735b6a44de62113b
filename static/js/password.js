// Lets a person see the password they write.

function show(field, button, isShown) {
  field.type = isShown ? "text" : "password";
  button.setAttribute("aria-pressed", String(isShown));
}

for (const button of document.querySelectorAll("[data-show-password]")) {
  const field = document.getElementById(button.dataset.showPassword);
  button.addEventListener("click", () => show(field, button, field.type === "password"));
  // A browser keeps what was sent in a plain field, and offers it again to the next person.
  field.form.addEventListener("submit", () => show(field, button, false));
}
