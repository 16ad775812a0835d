"""The zoo: pretrained backdoored models with their cards."""
