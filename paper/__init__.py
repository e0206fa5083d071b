"""The paper's tables and figures, measured here: python -m paper.reproduce --help"""
