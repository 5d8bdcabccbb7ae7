SELECT idem_fingerprint('staging') \g /dev/null
