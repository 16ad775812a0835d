"""Every word of the field that the app uses. Each has an address of its own: /glossary?term=asr. Imports no torch."""

import streamlit as st

from npd_core.errors import NPDError
from pages.content.glossary import TERMS, Term, get_term, search
from pages.shared import shell


def links(term: Term) -> str:
    """Links to the terms that explain more, within this page."""
    return " · ".join(f"[{TERMS[name].title}](#{name})" for name in term.see)


def entry(term: Term) -> None:
    st.subheader(term.title, anchor=term.id)
    st.markdown(term.text + (f"\n\n:gray[See also] {links(term)}" if term.see else ""))


shell.selection()
st.title("Glossary", anchor=False)
st.write(
    "The words that this app uses, in a sentence or two each. The link beside a word leads straight to it."
)

asked = st.query_params.get("term")
if asked:
    try:
        one = get_term(asked)
    except NPDError as error:
        st.error(str(error), icon=":material/error:")
    else:
        with st.container(border=True, key="asked"):
            st.markdown(f"**{one.title}**\n\n{one.text}")
words = st.text_input(
    "Search",
    key="words",
    bind="query-params",
    icon=":material/search:",
    placeholder="for example: attack success, rho, shortcut",
    max_chars=80,
)
found = search(words)
if not found:
    st.info("No word fits. Try a shorter one, or empty the field to see all.", icon=":material/search_off:")
for section, terms in found.items():
    st.header(section, anchor=False, divider="gray")
    for term in terms:
        entry(term)
