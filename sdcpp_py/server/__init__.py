"""A server of pictures: a queue that outlives restarts, workers that may die, and the APIs that clients speak.

``scheduler`` has the jobs and gives them to workers; nothing in it knows of HTTP. ``work`` is what a worker process
does, ``local_worker`` the other end of its pipe. ``api`` has a file for each API, thin over the scheduler. The front,
which clients speak to, never loads the engine: what ends a worker ends no other job.

Nothing here is imported with the package: ``sdcpp serve`` does, and needs ``pip install "sdcpp-py[server]"``.
"""
