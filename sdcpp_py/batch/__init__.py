"""Many pictures from a file of lines: what is done is kept and not drawn again, whatever ends in between.

``lines`` reads what is asked for and finds what is wrong in it, ``results`` keeps pictures and their index in a folder,
``run`` gives the lines to the workers of :mod:`sdcpp_py.server`, through its scheduler. Nothing here is imported with
the package: ``sdcpp batch`` does.
"""
