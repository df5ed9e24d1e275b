"""The chapters of docs/tour: `run` executes their code, `toy` has the data that they use."""
