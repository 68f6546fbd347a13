"""A site's side of a standing federation: which jobs it runs, and a process for each."""
