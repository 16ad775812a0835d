"""The technical terms of the app. Each has its own URL: /glossary?term=asr. Imports no torch."""

import streamlit as st

from pages.content.glossary import TERMS, Term, get_term, search
from pages.shared import shell, url_state


def parse_term(found: str) -> str:
    return get_term(found).id


def related(term: Term) -> str:
    return " · ".join(f"[{TERMS[name].title}](#{name})" for name in term.see)


def draw_term(term: Term) -> None:
    st.subheader(term.title, anchor=term.id)
    st.markdown(term.text + (f"\n\n:gray[See also] {related(term)}" if term.see else ""))


shell.selection()
st.title("Glossary", anchor=False)
st.write(
    "The technical terms of the app, explained in a sentence or two. Each heading has a link of its own."
)

TERM = url_state.UrlValue("term", parse_term, "")
chosen = TERM.get()
url_state.show_notices(TERM)
if chosen:
    with st.container(border=True, key="chosen-term"):
        st.markdown(f"**{TERMS[chosen].title}**\n\n{TERMS[chosen].text}")
words = st.text_input(
    "Search",
    **url_state.bound(url_state.short_text("words")),
    icon=":material/search:",
    placeholder="for example: attack success, rho, shortcut",
    max_chars=80,
)
found = search(words)
if not found:
    st.info(
        "No term matches. Try a shorter word, or clear the search to see all terms.",
        icon=":material/search_off:",
    )
for section, terms in found.items():
    st.header(section, anchor=False, divider="gray")
    for term in terms:
        draw_term(term)
