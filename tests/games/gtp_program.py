"""A program that speaks the Go Text Protocol: it sets stones on the first empty points, and can misbehave.

Arguments: the number of its moves before it misbehaves, and how. It resigns where there are so many stones.
"""

import sys
import time

moves_left, deed = int(sys.argv[1]) if len(sys.argv) > 1 else 10**6, "".join(sys.argv[2:])
COLUMNS = "ABCDEFGHJKLMNOPQRSTUVWXYZ"
size, taken = 0, set()

if deed == "babble":
    print("welcome\n", flush=True)
while deed == "drip":
    print("thinking", flush=True)
    time.sleep(0.1)
if deed == "not start":
    sys.exit("no such network: b40")
for line in sys.stdin:
    print(line.rstrip(), file=sys.stderr, flush=True)
    word, *rest = line.split()
    answer = "="
    if word == "boardsize":
        size = int(rest[0])
        answer = "=" if size <= 19 else "? unacceptable size"
    elif word == "clear_board":
        taken = set()
    elif word == "play":
        answer = "? illegal move" if rest[1] in taken else "="
        taken.add(rest[1])
    elif word == "genmove":
        moves_left -= 1
        free = [f"{c}{r}" for r in range(size, 0, -1) for c in COLUMNS[:size] if f"{c}{r}" not in taken]
        answer = f"= {free[0] if free else 'PASS'}"
        if len(taken) >= int(sys.argv[1]) if deed == "resign" else moves_left < 0:
            answer = {
                "resign": "= resign",
                "illegal": f"= {next(iter(taken), 'A1')}",
                "poetry": "= a stone",
                "refuse": "? cannot think",
            }.get(deed, answer)
            if deed == "die":
                sys.exit("out of memory")
            if deed == "hang":
                time.sleep(1000)
        taken.add(answer[2:])
    print(f"{answer}\n", flush=True)
