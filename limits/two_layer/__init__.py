"""One hidden layer at infinite width: linear in closed form, others by particles."""
