"""K-FAC factors of each kind of layer, and the matrix products for them."""
