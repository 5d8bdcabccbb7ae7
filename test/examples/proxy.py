"""A proxy in front of a PostgreSQL server that sees the messages of the protocol.

It can do something to a client when a certain message goes by (kill it), and it can break
the connection in place of passing on the answer to COMMIT: the transaction is committed,
and the client cannot know.
"""

import os
import socket
import threading


def connect(host, port):
    if host.startswith("/"):
        server = socket.socket(socket.AF_UNIX)
        server.connect(os.path.join(host, f".s.PGSQL.{port}"))
        return server
    return socket.create_connection((host, port))


def read(stream, length):
    data = b""
    while len(data) < length:
        received = stream.recv(length - len(data))
        if not received:
            raise ConnectionError
        data += received
    return data


def read_message(stream, typed):
    """Return a whole message. Only the very first one of a client has no type."""
    head = read(stream, 5 if typed else 4)
    return head + read(stream, int.from_bytes(head[-4:], "big") - 4)


class Proxy:
    def __init__(self, host, port):
        self.server = (host, port)
        self.lock = threading.Lock()
        self.messages = 0  # seen so far, both ways
        self.trigger = None  # (number of the message, what to do then)
        self.drop = lambda: False  # is asked for each COMMIT
        self.dropped = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def after(self, messages, action):
        """Have something done when so many more messages have gone by."""
        with self.lock:
            self.trigger = (self.messages + messages, action) if action else None

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        with client:
            try:
                server = connect(*self.server)
            except OSError:
                return
            with server:
                other = threading.Thread(target=self.pump, args=(client, server, False), daemon=True)
                other.start()
                self.pump(server, client, True)
                other.join()

    def pump(self, source, sink, from_server):
        typed = from_server
        try:
            while True:
                message = read_message(source, typed)
                typed = True
                if from_server and message[:1] == b"C" and message[5:] == b"COMMIT\0" and self.dropping():
                    break
                sink.sendall(message)
                self.passed()
        except OSError:
            pass
        # What the other direction is about to read or write fails at once.
        for end in source, sink:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def dropping(self):
        with self.lock:
            drop = self.drop()
            self.dropped += drop
            return drop

    def passed(self):
        with self.lock:
            self.messages += 1
            if not self.trigger or self.messages < self.trigger[0]:
                return
            action = self.trigger[1]
            self.trigger = None
        action()
