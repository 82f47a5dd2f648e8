"""Whether a dataset folder is whole, agrees with itself, and has labels that tell metrics apart."""
