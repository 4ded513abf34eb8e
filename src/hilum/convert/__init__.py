"""Other people's weights into an encoder folder: a table of names, strict, and the one process that opens a
pickle.
"""
