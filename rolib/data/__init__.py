"""Data: words, the corpus, the five data sets, the downloader and the built-in sample."""
