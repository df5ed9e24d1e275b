"""Measures of images and of models, as functions without flags."""
