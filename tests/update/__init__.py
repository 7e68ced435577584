"""`kars update` and its notice, with real installers and a real index on loopback."""
