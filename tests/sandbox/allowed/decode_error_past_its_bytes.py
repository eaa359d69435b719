from contextlib import suppress

KINDS = (UnicodeDecodeError, KeyError)


class Runnable:
    def process(self, queries):
        found = []
        for data in (b"\xff", b"a\xc3"):
            try:
                data.decode()
            except UnicodeDecodeError as err:
                found.append([str(err), err.start, err.end, err.reason, isinstance(err, UnicodeDecodeError), isinstance(err, ValueError)])
        for error in (KeyError("k"), UnicodeDecodeError("utf-8", b"ab", 1, 2, "why")):
            try:
                raise error
            except KINDS as err:
                found.append(str(err))
        try:
            b"\xff".decode()
        except (KeyError, UnicodeDecodeError):
            found.append("both")
        with suppress(UnicodeDecodeError):
            b"\xfe".decode()
        try:
            UnicodeDecodeError("utf-8", b"ab", 1, 2, "why").reason.x
        except (AttributeError, OSError):
            found.append(issubclass(UnicodeDecodeError, ValueError))
        return found
