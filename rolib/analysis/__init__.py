"""Analysis: loyalty, uncertainty, and the tables of a study."""
