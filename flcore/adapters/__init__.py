"""flcore inside other frameworks. `import flcore` imports no adapter: each needs its framework."""
