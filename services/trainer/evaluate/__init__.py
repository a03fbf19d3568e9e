"""Is the new adapter really better? Answers of both arms, blinded packets for physicians, scores, report, and the gate."""
