"""moto's server, one request at a time.

S3 checks the condition of a PUT and stores the object in one step. moto does so in two, and runs requests in threads: of
racing writers several could win, and a test of the races would test moto.
"""

import threading

import moto.server

run_simple = moto.server.run_simple


def run_one_at_a_time(host, port, application, **options):
    lock = threading.Lock()

    def locked(environ, start_response):
        with lock:
            return list(application(environ, start_response))

    run_simple(host, port, locked, **options)


moto.server.run_simple = run_one_at_a_time
moto.server.main()
