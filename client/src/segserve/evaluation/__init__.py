"""How good a model's answers are on labelled images, and the reports that say so."""
