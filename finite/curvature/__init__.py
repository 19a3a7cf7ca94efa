"""The Hessian, its parts and the NTK of a network, as products with vectors; their spectra."""
