"""QAQ: choose code instructions by how much the answer explains the query.

Method: arXiv 2603.12165. See the README for the stages and the file layout.
"""

__version__ = '0.1.0'
