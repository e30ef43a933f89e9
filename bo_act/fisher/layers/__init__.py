"""What each kind of layer contributes to K-FAC, and the products that it is made of."""
