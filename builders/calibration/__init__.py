"""Finding the levels of codecs: ten parameters that spread the harm evenly."""
