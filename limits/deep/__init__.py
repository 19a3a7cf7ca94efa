"""Deeper networks at infinite width in μP: dynamical mean field, exact where the activation is linear."""
