"""Data, losses and the fit loop; never on the live path."""
