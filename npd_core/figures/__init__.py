"""Record -> plotly Figure, and the plans that the drawings follow. No torch, no streamlit."""
