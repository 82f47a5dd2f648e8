"""HEVC and VVC: x265 and VVenC as libraries, HM and VTM as programs."""
