"""Texts of the app: the glossary and the lessons."""
