"""From a picture to an answer: reading, preprocessing, prediction."""
