"""docs/api.md is a transcript: commands are typed, messages of clients are sent and those to clients have come, in the order of the page."""

import base64
import json
import sys
import unittest

import shell
from pages import ROOT, SHELLS
from test_blocks import BLOCKS

sys.path.insert(0, str(ROOT / "tests/container"))
from cable import Cable  # noqa: E402

PAGE = "docs/api.md"


def is_chatter(message):
    return message.get("type") in ("ping", "welcome")


class Api(unittest.TestCase):
    def test_the_page_is_what_happens(self):
        terminal, clients, said = shell.Shell(), {}, 0
        try:
            for block in (block for block in BLOCKS if block.page == PAGE):
                with self.subTest(block.where):
                    if block.language in SHELLS:
                        for command, expected in block.commands():
                            code, output = terminal.type(command)
                            self.assertEqual(code, 0, output)
                            self.assertIsNone(shell.fulfils(expected, output), f"{command}\nprinted\n{output}")
                            if not clients and terminal.server_is_running():
                                clients = {name: Cable(8080, sid=name) for name in ("client-1", "client-2")}
                    elif block.language == "json" and block.note:
                        said += 1
                        message = json.loads(block.text)
                        if block.note in clients:
                            clients[block.note].send(message)
                        else:
                            receiver = block.note.removeprefix("to-")
                            for name in clients if receiver == "both" else [receiver]:
                                # The next one that is no ping: nothing else may come in between.
                                got = clients[name].next(lambda message: not is_chatter(message))
                                self.assertEqual(got, message, name)
            self.assertGreater(said, 10)
            self.token_connects()
        finally:
            for client in clients.values():
                client.socket.close()
            terminal.close()

    def token_connects(self):
        """The token of the page, whose claims are those of the page."""
        (claims,) = [json.loads(block.text) for block in BLOCKS if block.page == PAGE and block.language == "json" and not block.note]
        (token,) = [expected[0] for block in BLOCKS if block.page == PAGE for command, expected in
                    (block.commands() if block.language == "console" else []) if "$CLAIMS" in command]
        middle = token.split(".")[1]
        self.assertEqual(json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4))), claims)
        for given, answer in ((token, "welcome"), (token[:-3] + "AAA", "disconnect")):
            with Cable(8080, path=f"/cable?jid={given}") as cable:
                self.assertEqual(cable.next(lambda message: message.get("type") != "ping")["type"], answer)


if __name__ == "__main__":
    unittest.main(verbosity=2)
