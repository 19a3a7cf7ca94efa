"""Whether every size of a network scales as derived."""
