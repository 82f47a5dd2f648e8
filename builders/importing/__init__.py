"""Making a dataset folder from the files of the published benchmark."""
