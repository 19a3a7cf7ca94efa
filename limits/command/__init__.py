"""How the commands of all rooms begin: the first moments, their options, and what is imported only when it is used."""
