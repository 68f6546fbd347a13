"""flcore inside other frameworks: each adapter is imported by itself, beside the framework that it is for."""
