"""The numbered data steps, and the datasets a model trains on."""
