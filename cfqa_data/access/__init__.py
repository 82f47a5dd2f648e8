"""Reading a dataset folder, on this machine or on the Hub."""
