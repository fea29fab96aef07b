"""What `predict` is made of: models, sources of images, rows, folders by label."""
