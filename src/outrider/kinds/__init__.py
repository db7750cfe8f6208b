"""What a task can do: one module per kind, each with the executor that runs it."""
