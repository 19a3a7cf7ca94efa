"""How networks of growing width approach their limit."""
