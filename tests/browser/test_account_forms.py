"""Signing up and logging in: simple words, every error, and the focus where one goes on."""

from playwright.sync_api import Page, expect

from tests.browser.steps import sign_up


def test_signing_up_says_in_simple_words_what_is_wanted(page: Page) -> None:
    page.goto("/accounts/signup/")
    main = page.get_by_role("main")
    expect(main).to_contain_text("Letters, digits and . _ - + @, without spaces.")
    expect(main).to_contain_text("At least 8 characters.")
    expect(main).not_to_contain_text("@/./+/-/_")
    expect(main.locator("li")).to_have_count(0)


def test_every_error_is_shown_and_the_name_stays(page: Page) -> None:
    page.goto("/accounts/signup/")
    page.get_by_label("Username").fill("two words")
    page.get_by_label("Password", exact=True).fill("123")
    page.get_by_label("Password again", exact=True).fill("124")
    page.get_by_role("main").get_by_role("button", name="Sign up").click()
    expect(page.locator(".form__error")).to_have_count(3)
    expect(page.locator("#id_username_error")).to_contain_text("a sign or a space")
    expect(page.locator("#id_password1_error p")).to_have_count(3)
    expect(page.locator("#id_password2_error")).to_contain_text("match")
    expect(page.get_by_label("Username")).to_have_value("two words")
    expect(page.get_by_label("Username")).to_be_focused()


def test_after_a_wrong_password_it_is_written_anew_at_once(page: Page) -> None:
    page.goto("/accounts/login/")
    expect(page.get_by_label("Username")).to_be_focused()
    expect(page.get_by_role("main")).to_contain_text("Ask the person who runs this site")
    page.get_by_label("Username").fill("nobody")
    page.get_by_label("Password", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_label("Username")).to_have_value("nobody")
    expect(page.get_by_label("Password", exact=True)).to_be_focused()


def test_a_password_can_be_shown_and_is_hidden_when_it_is_sent(page: Page) -> None:
    page.goto("/accounts/login/")
    field = page.get_by_label("Password", exact=True)
    page.get_by_label("Username").fill("somebody")
    field.fill("secret")
    page.get_by_role("button", name="Show what is written in: Password").click()
    expect(field).to_have_attribute("type", "text")
    page.evaluate(
        "document.querySelector('form.form').addEventListener('submit', e => e.preventDefault())"
    )
    page.get_by_role("main").get_by_role("button", name="Log in").click()
    expect(field).to_have_attribute("type", "password")


def test_changing_the_password_has_the_same_simple_words(page: Page) -> None:
    sign_up(page, "changer")
    page.wait_for_url("**/")
    page.goto("/accounts/password/")
    expect(page.get_by_role("main")).to_contain_text("At least 8 characters.")
    expect(page.get_by_label("New password again", exact=True)).to_be_visible()
