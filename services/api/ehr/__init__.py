"""The EHR door: HL7 CDS Hooks services, their cards, and the page on which a case goes on."""
