"""Numbers, figures and controls for the reader."""
