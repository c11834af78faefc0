"""Asking a model about an encrypted picture.

`cryptonets` trains the network and merges its layers, `network` is what comes of it in plaintext.
`tensors`, `lanes` and `taps` are three forms of it under encryption, `session` their one server and
client, `messages` and `seal` what both stand on; `depth` and `gates` belong to part two. Nothing is
imported here, for a server's process needs no torch.
"""
